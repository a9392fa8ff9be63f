// Before anything is drawn: the theme that was chosen, if one was. Else the system's holds.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("vmnetd-theme"); } catch { /* storage is off: the system's */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
