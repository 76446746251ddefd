"""Files behind a path or a URL: read with retries, written whole, kept in step."""
