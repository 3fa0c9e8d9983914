"""Where rows come from, and what prompt each of them makes."""
