// This is not a module: it runs before the page is drawn, so that the page never flashes up in the other colours.
try {
	const theme = localStorage.getItem('spine.theme');
	if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
	/* storage is switched off: the system's colours stay */
}
