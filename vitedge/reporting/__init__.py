"""From results to what people read: terminal tables, Markdown, CSV and one HTML file."""
