"""How models are trained: tasks, optimizer, recipes, captured graphs."""
