"""One folder per process. Services never import each other; they speak through `shared`."""
