"""What at least two services speak. Nothing here imports a service."""
