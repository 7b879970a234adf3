"""Running studies: tasks, networks, engines, executors, and the plan that joins them."""
