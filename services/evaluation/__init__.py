"""Job: run the agent over a problem set and score it; scores, tables and plots."""
