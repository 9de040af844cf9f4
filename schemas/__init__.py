"""What comes in: its shapes, and the strict JSON reader. Imports nothing of the gateway."""
