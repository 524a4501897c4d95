"""Job: render phantoms with known lesions, and the scenes that pre-train the tiny policy."""
