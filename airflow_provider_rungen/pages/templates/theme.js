// Follows the light and dark switch of Airflow, which keeps its choice under this name. Loaded before the page is drawn.
"use strict";

(() => {
  function follow() {
    let theme = null;
    try {
      theme = localStorage.getItem("theme");
    } catch {
      // a sandboxed frame has no storage: the system decides
    }
    const root = document.documentElement;
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  }

  follow();
  addEventListener("storage", follow); // switched in another frame or tab
})();
