// Not a module: it runs before the page is drawn, so that a page in the other
// colours never flashes up.
try {
	const theme = localStorage.getItem('spine.theme');
	if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
	/* storage is switched off: the system's colours it is */
}
