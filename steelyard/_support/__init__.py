"""What every room uses and no user sees: checks of arguments, files, text, random state, workers. Imports no room."""
