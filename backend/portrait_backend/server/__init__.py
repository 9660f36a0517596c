"""The backend server: an encrypted front end, a job store that survives anything, and a worker process per device."""
