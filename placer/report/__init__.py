"""Plans, traces and profiles as a person sees them: in the terminal and as one HTML file."""
