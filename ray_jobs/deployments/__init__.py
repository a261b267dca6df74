"""Models at work: what is deployed where, and how one version takes the place of another."""
