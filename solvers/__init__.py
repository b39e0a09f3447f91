"""Problem to plan: pure optimisation, no Ray and no clock."""
