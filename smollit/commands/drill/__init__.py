"""The command `drill`: runs of one's own config that are killed, started again, and compared with an unbroken one."""
