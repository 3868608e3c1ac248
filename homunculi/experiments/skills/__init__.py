"""Skills: small models of every architecture learn generated tasks with known answers, at equal size and equal grid."""
