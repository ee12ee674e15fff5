"""Medical concepts (diagnoses, procedures, drugs): titles, knowledge graph, discrete codes."""
