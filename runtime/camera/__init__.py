"""Live cameras, streams and films: newest frame, advice to the photographer, the best frame of a burst answered."""
