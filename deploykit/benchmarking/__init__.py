"""What a measurement is and what may be said of it; nothing here measures."""
