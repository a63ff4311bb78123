"""Camera streams and a session in; a record a frame, events, files and a live page out."""
