// A page that grows: it is fetched again while the run is unfinished, and what changed takes the place of what was there.
(() => {
  const SECONDS = 2;
  let version = null;
  const replace = (mine, next) => {
    const open = [...mine.querySelectorAll("details")].map((each) => each.open);
    next.querySelectorAll("details").forEach((each, n) => { each.open = open[n]; });
    if (mine.isEqualNode(next)) return mine;
    mine.replaceWith(next);
    return next;
  };
  const swap = (page) => {
    // What the reader looks at stays where it is.
    const sections = [...document.querySelectorAll("main > section")];
    const anchor = sections.find((each) => each.getBoundingClientRect().bottom > 0) || { id: "" };
    const before = anchor.id && anchor.getBoundingClientRect().top;
    document.title = page.title;
    for (const name of ["header", "footer"]) replace(document.querySelector(name), page.querySelector(name));
    const main = document.querySelector("main"), ids = [...page.querySelectorAll("main > section")].map(({ id }) => id);
    sections.forEach((each) => ids.includes(each.id) || each.remove());
    page.querySelectorAll("main > section").forEach((next, n) => {
      const mine = document.getElementById(next.id), here = mine ? replace(mine, next) : next;
      if (main.children[n] !== here) main.insertBefore(here, main.children[n] || null);
    });
    charts.redraw();
    const now = anchor.id && document.getElementById(anchor.id);
    if (now) scrollBy({ top: now.getBoundingClientRect().top - before, behavior: "instant" });
  };
  const look = async () => {
    if (document.querySelector(".band")) return; // somebody drags
    const answer = await fetch("/", { cache: "no-store", headers: version ? { "If-None-Match": version } : {} });
    if (answer.status === 304) return;
    if (!answer.ok) throw new Error(answer.statusText);
    version = answer.headers.get("etag");
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (!("live" in page.body.dataset)) return location.reload(); // the last page, which is the report
    swap(page);
  };
  const again = async () => {
    const gone = document.getElementById("gone");
    if (!document.hidden) await look().then(() => { gone.hidden = true; }, () => { gone.hidden = false; });
    setTimeout(again, SECONDS * 1000);
  };
  setTimeout(again, SECONDS * 1000);
})();
