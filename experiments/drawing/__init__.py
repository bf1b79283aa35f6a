"""What every report of ours is made of: figures in one style, and one HTML page that needs no network."""
