"""One file per architecture: what it is made of, its sizes, its published weights' names."""
