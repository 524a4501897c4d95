"""One Celery queue in Redis: delivered again until done, never lost with its worker."""
