"""What a run gave: figures and a report. The only part of sdjax that imports matplotlib."""
