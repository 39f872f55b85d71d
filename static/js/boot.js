// Theme and rail as they were left, before the first paint. A plain script in the head, so that nothing flashes.
(() => {
  const root = document.documentElement;
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  if (localStorage.getItem("rail") === "folded") root.dataset.rail = "folded";
})();
