"""`make bench-site`: the report site of 1,000 versions x 50 metrics and a million metric points, beside pandas and Hugo.

    python site.py BUILD_SITE EXAMPLES [--versions 1000] [--metrics 50] [--points 1000000]

BUILD_SITE is our binary, EXAMPLES the folder with the programs that write the input and render the leaderboard alone. CPU seconds are the process's and its
descendants', the least of the rounds; the machine may be shared, so wall times say little. Where other work has just removed
many files, the kernel looks long for a place for new ones; TMPDIR=/dev/shm leaves the disk out. Ours reads the artifacts and
writes every page in two languages, data files and snapshot. pandas reads the same table, sorts, ranks and writes CSV and
JSON; Hugo renders one page per version from the same analyses, with a template of three lines and nothing else.
"""
import argparse, gzip, pathlib, platform, resource, shutil, subprocess, sys, tempfile, time

PANDAS = """
import sys, pandas
table = pandas.read_csv(sys.argv[1])
table = table.sort_values("metric__pass_at_1", ascending=False, na_position="last")
table["rank"] = table["metric__pass_at_1"].rank(ascending=False, method="min")
table.to_csv(sys.argv[2] + ".csv", index=False)
table.to_json(sys.argv[2] + ".json", orient="records")
"""
LAYOUT = "<!doctype html><html lang=en><title>{{ .Title }}</title><main>{{ .Content }}</main></html>\n"


def cpu(command, **kwargs):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **kwargs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    kernel = after.ru_stime - before.ru_stime
    return after.ru_utime - before.ru_utime + kernel, time.monotonic() - start, done.stdout, kernel


def least(rounds, run):
    return min((run() for _ in range(rounds)), key=lambda one: one[0])


def ours(binary, examples, folder, versions, metrics, points, rounds):
    told = cpu([examples / "site_input", folder, versions, metrics, points])[2]
    leaderboard = told.split()[-1]
    command = [binary, "--mirror", folder / "mirror", "--leaderboard", leaderboard, "--out"]
    # Into new folders: a disk looks for a place among inodes that were freed within seconds much longer than anywhere else.
    sites = (folder / f"site{number}" for number in range(rounds))
    full = least(rounds, lambda: cpu([*command, next(sites)]))
    again = least(rounds, lambda: cpu([*command, folder / "site0"]))
    assert "nothing changed" in again[2], again[2]

    def page():
        shutil.rmtree(folder / "page", ignore_errors=True)
        return cpu([examples / "leaderboard_page", folder / "mirror" / leaderboard, folder / "page"])

    return full, again, least(rounds, page)


def hugo(folder, rounds):
    source = folder / "hugo"
    (source / "content").mkdir(parents=True)
    (source / "layouts/_default").mkdir(parents=True)
    (source / "hugo.toml").write_text('baseURL = "/"\ndisableKinds = ["taxonomy", "term", "RSS", "sitemap"]\n[markup.highlight]\ncodeFences = false\n')
    for name in ("single", "list"):
        (source / f"layouts/_default/{name}.html").write_text(LAYOUT)
    for page in sorted((folder / "pages").iterdir()):
        text = page.read_text()
        (source / "content" / page.name).write_text(f'+++\ntitle = "{page.stem}"\n+++\n{text}')

    command = [pathlib.Path(sys.executable).parent / "hugo", "--quiet", "--destination"]
    folders = (f"public{number}" for number in range(rounds))
    return least(rounds, lambda: cpu([*command, next(folders)], cwd=source))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("examples", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        full, again, page = ours(given.binary, given.examples, folder / "large", given.versions, given.metrics, given.points, given.rounds)
        ours(given.binary, given.examples, folder / "small", 100, given.metrics, 100_000, 1)
        site = folder / "large/site0"
        files = sum(1 for path in site.rglob("*") if path.is_file())
        small = folder / "small/site0"
        sent = sum(len(gzip.compress((small / name).read_bytes(), 9)) for name in ("index.html", "style.css", "site.js"))
        table = least(given.rounds, lambda: cpu([sys.executable, "-c", PANDAS, folder / "large/table.csv", folder / "table"]))
        pages = hugo(folder / "large", given.rounds)
    print(f"{platform.machine()}, {given.versions} versions x {given.metrics} metrics, {given.points} points; CPU s, least of {given.rounds}")
    print(f"{'full site, two languages':34} {full[0]:7.2f}  ({full[3]:.2f} of it in the kernel; {files} files, {full[1]:.1f} s wall)")
    print(f"{'leaderboard page alone':34} {page[0]:7.2f}  ({page[0] / table[0]:.2f} of pandas)")
    print(f"{'unchanged':34} {again[0]:7.2f}")
    print(f"{'pandas, the table alone':34} {table[0]:7.2f}  (ours has all of it done in {full[0] / table[0]:.1f} of that)")
    print(f"{'Hugo, one bare page a version':34} {pages[0]:7.2f}  (ours: {full[0] / pages[0]:.1f} of that for {files / given.versions:.0f} files a version)")
    print(f"leaderboard of 100 versions, page, style and script gzipped: {sent / 1024:.1f} KB")


main()
