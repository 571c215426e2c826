"""What happens to outputs when processes are killed."""
