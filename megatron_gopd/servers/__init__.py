"""Child processes and HTTP: servers that sample or score, started and watched or only called. No optimizer here."""
