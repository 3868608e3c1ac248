"""Other projects' formats and packages. Every optional package is imported here, inside the function that needs it."""
