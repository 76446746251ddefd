"""An exported ensemble behind HTTP: uploads, their decoding apart, windows, the page, Ray Serve."""
