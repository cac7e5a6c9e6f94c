"""The recipe that made the embedded model `vignette`, and the world that it learnt."""
