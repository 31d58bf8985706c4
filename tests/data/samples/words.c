#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define WORD_MAX 64

struct word {
    char text[WORD_MAX];
    int count;
};

/* The slot of a word, or -1. */
static int find(const struct word *words, int size, const char *text)
{
    for (int i = 0; i < size; i++) {
        if (strcmp(words[i].text, text) == 0)
            return i;
    }
    return -1;
}

int count_words(FILE *in, struct word *words, int room)
{
    char buffer[WORD_MAX];
    int size = 0;
    while (fscanf(in, "%63s", buffer) == 1) {
        int at = find(words, size, buffer);
        if (at < 0 && size < room) {
            at = size++;
            strcpy(words[at].text, buffer);
            words[at].count = 0;
        }
        if (at >= 0)
            words[at].count++;
    }
    return size;
}
