"""The claims, the rule that judges them, and the measures and intervals behind it."""
