"""What a run tells: its log, monitors, and a line for people."""
