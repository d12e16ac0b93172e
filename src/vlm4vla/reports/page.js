// The page is complete without this: it makes tables sortable, lights up what tells of one row, and plays videos by a
// click or all of an episode at once.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const order = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
      const rows = [...body.rows].filter((row) => row.className !== "group").sort(order);
      body.replaceChildren(...(rising ? rows : rows.reverse()));
    });
  });
}
const telling = [...document.querySelectorAll("[data-row]")];
const rowAt = (event) => event.target.closest?.("[data-row]")?.dataset.row ?? null;
const light = (row) => {
  const drawn = telling.some((part) => part.dataset.row === row && part.ownerSVGElement);
  for (const part of telling) {
    part.classList.toggle("lit", drawn && part.dataset.row === row);
    part.classList.toggle("dim", drawn && part.dataset.row !== row);
  }
};
let kept = null;
document.addEventListener("pointerover", (event) => light(rowAt(event) ?? kept));
document.addEventListener("click", (event) => {
  kept = rowAt(event) === kept ? null : rowAt(event);
  light(kept);
});
const restart = (video) => {
  video.currentTime = 0;
  video.play();
};
for (const video of document.querySelectorAll(".clips video")) {
  video.controls = false;
  video.tabIndex = 0;
  const show = () => video.parentElement.classList.toggle("idle", video.paused);
  for (const event of ["play", "pause", "ended"]) video.addEventListener(event, show);
  show();
  const toggle = () => (video.paused ? (video.ended ? restart(video) : video.play()) : video.pause());
  video.addEventListener("click", toggle);
  video.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      toggle();
    }
  });
}
for (const header of document.querySelectorAll(".episode header")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "play";
  button.textContent = "Play together";
  button.addEventListener("click", () => {
    header.parentElement.querySelectorAll("video").forEach(restart);
  });
  header.append(button);
}
