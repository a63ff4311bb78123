"""Results in; tables, pictures, Markdown, CSV and one HTML file out."""
