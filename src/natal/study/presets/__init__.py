"""Study files that come with natal: data, not code. ``natal list`` names them, ``natal show NAME`` prints one."""
