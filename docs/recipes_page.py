"""Prints docs/recipes.md, from what the recipes in configs/ say about themselves: python docs/recipes_page.py"""

from itertools import groupby

from bigroc.recipes import recipes

TITLES = {
    "refine": ("Refine", "The paper's eps for each generator. Its figures are the paper's, not ours."),
    "study": ("Study", "Each has a `--quick` form on bundled images."),
    "train": ("Train", "Every field is a flag; `--dry-run` prints them all."),
}


def main() -> None:
    print(
        "# Recipes\n\nA recipe is a YAML file in `configs/` that `--config` knows by name. `bigroc recipes` lists\n"
        "them; `bigroc recipes NAME` prints one, as a file to copy and change."
    )
    for command, group in groupby(recipes(), key=lambda recipe: recipe.command):
        title, about = TITLES[command]
        print(f"\n## {title}\n\n`bigroc {command} --config NAME ...`. {about}\n")
        print("| recipe | what it does | cost | score |\n|---|---|---|---|")
        for recipe in group:
            cells = (recipe.about, recipe.cost, recipe.score)
            print(f"| `{recipe.name}` | {' | '.join(cell.replace('|', ',') for cell in cells)} |")


if __name__ == "__main__":
    main()
