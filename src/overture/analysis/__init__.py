"""Understanding tokens: conditional entropy, and the figures of entropy and schedules."""
