"""A run's folder, its copy behind a URL, and the weights it keeps."""
