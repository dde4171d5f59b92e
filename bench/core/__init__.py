"""What everything else in this package stands on: errors, files, arrays, statistics, policy, progress."""
