"""What stands behind the subcommands that Lightning does not have."""
