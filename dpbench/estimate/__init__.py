"""What a manifest would take, before anything is there: answers, downloads, memory, hours, and the missing steps."""
