"use strict";
(() => {
  const main = document.querySelector("main"), note = document.getElementById("note");
  let last = null;
  async function renew() {
    if (!document.hidden) {
      try {
        const answer = await fetch(location.pathname + "?part");
        if (!answer.ok) throw new Error();
        const text = await answer.text();
        if (text !== last && getSelection().isCollapsed) {
          const open = [...main.querySelectorAll("details[open]")].map((part) => part.id);
          const aside = [...main.querySelectorAll(".wide")].map((part) => part.scrollLeft);
          main.innerHTML = text;
          for (const id of open) document.getElementById(id)?.setAttribute("open", "");
          main.querySelectorAll(".wide").forEach((part, i) => { part.scrollLeft = aside[i] ?? 0; });
          last = text;
        }
        note.textContent = "live, read at " + new Date().toLocaleTimeString();
        note.className = "small";
      } catch {
        note.textContent = "not connected: the server has ended; this is the last state it sent";
        note.className = "small lost";
      }
    }
    setTimeout(renew, 3000);
  }
  renew();
})();
