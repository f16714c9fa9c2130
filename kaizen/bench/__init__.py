"""What a step costs: time by part, arithmetic, memory and traffic, beside a plain loop and other pipelines of views."""
