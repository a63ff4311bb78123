"""Sessions and labelled pictures in; predictions, and what can honestly be said of them, out."""
