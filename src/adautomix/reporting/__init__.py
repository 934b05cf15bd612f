"""What a run gave, for people: pictures of mixes, curves, tables and one offline page."""
