"""What people look at: results, data, spaces, drawings."""
